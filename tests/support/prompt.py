"""Python's prompt: runs what is pasted on standard input, and exits with an error at the first line that raises one."""

import code
import sys


class Prompt(code.InteractiveConsole):
    """A prompt that raises errors and does not print them."""

    def showtraceback(self, *_, **__):
        raise

    def showsyntaxerror(self, *_, **__):
        raise


if __name__ == "__main__":
    prompt = Prompt({"__name__": "__main__"})
    wants_more = [prompt.push(line) for line in sys.stdin.read().splitlines()][-1]
    if wants_more:
        sys.exit("the last statement is not complete")

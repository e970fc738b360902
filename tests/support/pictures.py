"""Predictions and titles of pictures."""


def logits(model, images):
    """Return the logits of four classes, made from the tokens."""
    tokens = model.forward_features(images)[:, 1:, :4]
    return tokens.mT.unflatten(2, [side // 16 for side in images.shape[2:]])


def titles(figure):
    """Return the titles of panels; on figures, a line ends where a colon stands in the arrays' titles."""
    return [axis.get_title() for axis in figure.axes if axis.get_title()]


def legend_of(figure, title):
    """Return the legend beside a title: the one at the height of it."""
    (height,) = (text.get_position()[1] for text in figure.texts if text.get_text() == title)
    (legend,) = (legend for legend in figure.legends if legend.get_bbox_to_anchor().y0 == height * figure.bbox.height)
    return legend

"""Repeat the figures and tables of the ALGM paper and its supplement on models and data of your own."""

"""Reports of training runs and tests: one HTML file without network access, and figures and tables for papers.

- ``runs``, ``logs``, ``events``: what training left in a folder; ``results``: what tests left; ``scenes``: the images;
- ``page``, ``widgets``: building blocks of an HTML page; ``assets``: its style and scripts;
- ``training``, ``scores``: the sections of a report; ``build``: the whole report.
"""

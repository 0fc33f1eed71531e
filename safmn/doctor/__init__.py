"""Checks of the machine before the work starts (``safmn doctor``)."""

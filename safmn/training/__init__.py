"""Training: one short loop (``trainer``), and one module for each of its tasks.

Reading order: ``trainer``, ``models/sr_model``, ``build``, ``saving``, ``checkpoint``, ``resuming``, ``validation``,
``reporter``, ``experiment``, ``step_flags``.
"""

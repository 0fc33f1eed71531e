"""Training: one short loop (``trainer``), and one module for each of its tasks.

Reading order: ``trainer``, ``build``, ``checkpoint``, ``validation``, ``reporter``, ``experiment``, ``step_flags``.
"""

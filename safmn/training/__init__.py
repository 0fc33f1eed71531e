"""The engine: one short loop (``trainer``), and a room for each of its concerns.

Reading order: ``trainer``, ``setup``, ``checkpoint``, ``validation``, ``evaluate``, ``reporter``, ``experiment``,
``watch``.
"""

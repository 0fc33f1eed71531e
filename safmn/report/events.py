"""Read scalars and images from TensorBoard's event files."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

logger = logging.getLogger(__name__)


@dataclass
class Events:
    """The content of event files. Where a resumed run repeats iterations, the later entry counts.

    Attributes:
        scalars: tag -> iteration -> value.
        images: tag -> iteration -> encoded image file.
    """

    scalars: dict[str, dict[int, float]] = field(default_factory=dict)
    images: dict[str, dict[int, bytes]] = field(default_factory=dict)


def read_events(folder: Path) -> Events:
    """Read the event files of a folder and its subfolders, oldest first. Nothing is read without tensorboard.

    A file that is still being written is read as far as it is complete.
    """
    events = Events()
    files = sorted(folder.rglob("events.out.tfevents.*"), key=lambda path: (path.stat().st_mtime, path.name))
    if not files:
        return events
    try:
        from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
    except ImportError:
        logger.warning("%s is not read: tensorboard is missing (pip install tensorboard)", folder)
        return events
    for file in files:
        for event in LegacyEventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    events.scalars.setdefault(value.tag, {})[event.step] = float(value.simple_value)
                elif value.HasField("image"):
                    encoded = bytes(value.image.encoded_image_string)
                    events.images.setdefault(value.tag, {})[event.step] = encoded
    return events

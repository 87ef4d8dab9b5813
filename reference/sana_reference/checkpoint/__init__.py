"""Other people's checkpoints: find the files, recognise the sizes, fill our modules, strictly."""

from sana_reference.checkpoint.load import Checkpoint, load_checkpoint

__all__ = ["Checkpoint", "load_checkpoint"]

"""A model directory of ours, or a checkpoint of a run: to give it another vocabulary, length or depth."""

from pathlib import Path

from deltalm_ds.checkpoints.directory import check_fit, open_weights, parameter_shapes, read_config
from deltalm_ds.checkpoints.naming_scheme import has_name
from deltalm_ds.checkpoints.sizes import Sizes
from deltalm_ds.checkpoints.source import Origin, SourceCheckpoint
from deltalm_ds.checkpoints.tensor_files import TensorFile


class ModelDirectory:
    """See `SourceKind`."""

    kind = "deltalm"
    title = "DeltaLM model directory"

    def recognises(self, tensors: TensorFile) -> bool:
        """By names that nobody else has; those of any layer will do, as a directory may hold several files."""
        return has_name(tensors, r"^(encoder\.layers\.\d+\.self_attention|decoder\.blocks\.\d+)\.")

    def read(self, path: Path, tensors: TensorFile) -> SourceCheckpoint:
        """The whole directory, of which `path` may be a file; its config.json states every size."""
        directory = path if path.is_dir() else path.parent
        config, tensors = read_config(directory), open_weights(directory)
        shapes = parameter_shapes(config)
        check_fit(shapes, tensors, str(directory))
        origins = {name: Origin((name,)) for name in shapes}
        return SourceCheckpoint(
            self.kind, directory, tensors, Sizes.of(config), origins, vocabulary=directory, config=config
        )


MODEL_DIRECTORY = ModelDirectory()

"""vLLM's side of a weight transfer from files: runs in every worker, child processes included.

    LLM(model, weight_transfer_config={"backend": FILES}, worker_extension_cls=EXTENSION)     # actors/transfer.py

vLLM imports the module of `worker_extension_cls` wherever it makes a worker, and so the backend is registered there.
Weights go in layer by layer as vLLM's own backends put them (`initialize_layerwise_reload`): calling `load_weights` alone
fails where a platform has repacked them, as CPUs do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.model_loader import reload
from vllm.model_executor.model_loader.weight_utils import safetensors_weights_iterator

from actors.transfer import FILES, weight_files
from rhumbline.errors import WeightSyncError


@dataclass
class Nothing(WeightTransferInitInfo):
    """Files need no introduction."""


@dataclass
class Source(WeightTransferUpdateInfo):
    """Where the weights are."""

    path: str  # a checkpoint's folder, which this worker's machine can read


class FileEngine(WeightTransferEngine[Nothing, Source]):
    """Reads all weights of a checkpoint from its safetensors files, never from pickles."""

    init_info_cls = Nothing
    update_info_cls = Source

    def init_transfer_engine(self, init_info: Nothing) -> None: ...

    def start_weight_update(self) -> None:
        self.missing = {name.replace(".base_layer.", ".") for name, _ in self.model.named_parameters()}
        self.path = ""
        reload.initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: Source) -> None:
        self.path = update_info.path
        files = [str(file) for file in weight_files(Path(update_info.path))]
        model: Any = self.model
        loaded = model.load_weights(safetensors_weights_iterator(files, use_tqdm_on_load=False))
        # Not every model says what it has taken, and a quantised one makes parameters that no checkpoint holds.
        known = loaded is not None and self.model_config.quantization is None
        self.missing = self.missing - loaded if known else set()

    def finish_weight_update(self) -> None:
        finalize: Any = reload.finalize_layerwise_reload  # untyped
        finalize(self.model, self.model_config)
        if self.missing:  # vLLM keeps the old weights there, with a warning
            raise WeightSyncError(
                f"{self.path} has nothing for {len(self.missing)} of the engine's parameters, such as {min(self.missing)}: "
                "expected all weights of the same architecture"
            )

    def shutdown(self) -> None: ...


class Extension:
    """Adds nothing to a worker: its import is what is wanted."""


WeightTransferEngineFactory.register_engine(FILES, FileEngine)

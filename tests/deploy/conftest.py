import json

import pytest
import safetensors.torch


@pytest.fixture
def rewrite(tmp_path):
    """Makes a copy of an exported file with something changed."""

    def make(file, says=None, tensors=None, text=None):
        path = tmp_path / "changed.safetensors"
        state = safetensors.torch.load_file(file)
        with safetensors.safe_open(file, "pt") as opened:
            metadata = opened.metadata()
        content = json.loads(metadata["snnet_vitdet"])
        (says or dict)(content)
        (tensors or dict)(state)
        metadata["snnet_vitdet"] = json.dumps(content) if text is None else text
        safetensors.torch.save_file(state, path, metadata)
        return path

    return make

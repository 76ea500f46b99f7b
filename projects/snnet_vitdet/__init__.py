"""SN-Netv2 for detection: stitched plain ViTs as backbones of detectron2 detectors."""

__all__ = ["Predictor", "StitchTable"]


def __getattr__(name: str) -> object:
    # Not imported before it is asked for: `snnet_vitdet.stitching` needs no detectron2.
    if name in __all__:
        from snnet_vitdet import deploy

        return getattr(deploy, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

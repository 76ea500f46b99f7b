"""SN-Netv2 for detection: stitched plain ViTs as backbones of detectron2 detectors."""

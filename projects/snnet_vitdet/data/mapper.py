"""detectron2's mapper of data, with a sentence for every image file that cannot be used."""

from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils

from snnet_vitdet.errors import InputError

from .image_files import ImageFault, check_image, inspect_image

__all__ = ["CheckedMapper"]


class CheckedMapper(DatasetMapper):
    """Takes what detectron2's mapper takes, and gives what it gives.

    What that one would train wrong without a word, grey of 16 bits, is refused; what it would
    refuse in the words of some library is named; an image without an object can be trained on.
    """

    def __call__(self, dataset_dict: dict) -> dict:
        """Maps a dataset dict to what a model takes.

        Raises:
            InputError: If the image file cannot be used.
        """
        path, size = dataset_dict["file_name"], None
        if "width" in dataset_dict and "height" in dataset_dict:
            size = (dataset_dict["width"], dataset_dict["height"])
        check_image(path, size)
        try:
            return super().__call__(dataset_dict)
        except Exception as error:
            # Decoding stops where a file is damaged; everything else is not the file's fault.
            fault = inspect_image(path, size, decode=True)
            if isinstance(fault, ImageFault):
                raise InputError(str(fault)) from error
            raise

    def _transform_annotations(
        self, dataset_dict: dict, transforms: object, image_shape: tuple[int, int]
    ) -> None:
        if any(a.get("iscrowd", 0) == 0 for a in dataset_dict["annotations"]):
            super()._transform_annotations(dataset_dict, transforms, image_shape)
            return
        # detectron2 would look for masks to compute boxes from.
        del dataset_dict["annotations"]
        dataset_dict["instances"] = utils.annotations_to_instances([], image_shape)

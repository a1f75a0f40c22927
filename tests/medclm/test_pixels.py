from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.medclm.pictures import picture
from trimtab.medclm.pixels import PictureError, picture_size, read_mask, read_picture

VALUES = np.array([[0, 100], [200, 400]], dtype=np.int16)


def dicom_file(path: Path, values: np.ndarray = VALUES, **tags: object) -> Path:
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPInstanceUID, data.SOPClassUID = meta.MediaStorageSOPInstanceUID, SecondaryCaptureImageStorage
    data.Rows, data.Columns = values.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.PixelData = values.astype("<i2").tobytes()
    for key, value in tags.items():
        setattr(data, key, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, data)
    return path


def test_a_dicom_without_window_shows_its_whole_range(tmp_path: Path) -> None:
    path = dicom_file(tmp_path / "a.dcm")
    assert picture_size(path) == (2, 2)
    assert read_picture(path).tolist() == [[0, 64], [128, 255]]


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    plain = read_picture(dicom_file(tmp_path / "a.dcm"))
    inverted = read_picture(dicom_file(tmp_path / "b.dcm", PhotometricInterpretation="MONOCHROME1"))
    assert np.array_equal(inverted, 255 - plain)


def test_the_files_own_window_is_used_and_a_given_one_wins(tmp_path: Path) -> None:
    windowed = dicom_file(tmp_path / "a.dcm", WindowCenter=101, WindowWidth=201)  # DICOM's linear rule: 0.5 ... 200.5
    shown = read_picture(windowed)
    assert shown[0, 0] == 0
    assert shown[0, 1] in (127, 128)
    assert shown[1].tolist() == [255, 255] or shown[1, 0] >= 254
    rescaled = dicom_file(tmp_path / "b.dcm", RescaleSlope=2, RescaleIntercept=-100)
    assert read_picture(rescaled, window=(-100, 300)).tolist() == [[0, 128], [255, 255]]


def test_pydicoms_own_ct_slice_is_read() -> None:
    from pydicom.data import get_testdata_file

    path = Path(str(get_testdata_file("CT_small.dcm", download=False)))
    assert picture_size(path) == (128, 128)
    assert read_picture(path, window=(-160, 240)).shape == (128, 128)


def test_dicoms_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    (tmp_path / "broken.dcm").write_bytes(b"not dicom at all")
    frames = dicom_file(tmp_path / "frames.dcm", NumberOfFrames=2, PixelData=VALUES.astype("<i2").tobytes() * 2)
    for read in (picture_size, read_picture):
        with pytest.raises(PictureError, match=r"broken\.dcm is not a readable DICOM"):
            read(tmp_path / "broken.dcm")
        with pytest.raises(PictureError, match="2 frames"):
            read(frames)
    cut = dicom_file(tmp_path / "cut.dcm")
    cut.write_bytes(cut.read_bytes()[:-4])
    with pytest.raises(PictureError, match="cut"):
        read_picture(cut)


def test_sixteen_bit_pictures_are_scaled_by_the_window(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.array([[32768, 32768 + 50], [32768 + 100, 65535]], dtype=np.uint16)).save(path)
    assert read_picture(path, window=(32768, 32868)).tolist() == [[0, 128], [255, 255]]
    assert read_picture(path)[1, 1] == 255
    with pytest.raises(ValueError, match="first value below its second"):
        read_picture(path, window=(5, 5))


def test_grey_stays_grey_and_colour_gets_three_channels(tmp_path: Path) -> None:
    assert read_picture(picture(tmp_path / "a.png", 5, 4)).shape == (4, 5)
    Image.new("RGBA", (5, 4), (10, 20, 30, 255)).save(tmp_path / "c.png")
    assert read_picture(tmp_path / "c.png")[0, 0].tolist() == [10, 20, 30]


def test_pictures_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(PictureError, match=r"a\.png"):
        picture_size(tmp_path / "a.png")
    cut = picture(tmp_path / "cut.png")
    cut.write_bytes(cut.read_bytes()[:200])
    with pytest.raises(PictureError, match=r"cut\.png cannot be decoded"):
        read_picture(cut)
    Image.new("RGB", (5, 4)).save(tmp_path / "c.png")
    with pytest.raises(PictureError, match="one channel"):
        read_mask(tmp_path / "c.png")
    with pytest.raises(FileNotFoundError):
        picture_size(tmp_path / "none.png")

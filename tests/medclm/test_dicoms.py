"""DICOM files as hospitals write them: palettes, padding, windows of no width, no preamble, compressed pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.medclm.test_pixels import VALUES, dicom_file
from trimtab.medclm.pixels import PictureError, picture_size, read_picture


def sample(name: str) -> Path:
    from pydicom.data import get_testdata_file

    return Path(str(get_testdata_file(name, download=False)))


def test_a_palette_gives_its_colours(tmp_path: Path) -> None:
    table = (255 - np.arange(256, dtype=np.uint16)) * 257  # index 0 is white
    tags = {
        f"{colour}PaletteColorLookupTable{part}": value
        for colour in ("Red", "Green", "Blue")
        for part, value in (
            ("Descriptor", [256, 0, 16]),
            ("Data", (table if colour != "Blue" else table * 0).tobytes()),
        )
    }
    values = np.array([[0, 255], [100, 1]], dtype=np.uint8)
    path = dicom_file(
        tmp_path / "a.dcm", values.astype(np.int16), PhotometricInterpretation="PALETTE COLOR", PixelRepresentation=0,
        BitsAllocated=8, BitsStored=8, HighBit=7, PixelData=values.tobytes(), **tags,
    )  # fmt: skip
    expected = np.stack([255 - values, 255 - values, 0 * values], axis=-1)
    assert np.array_equal(read_picture(path), expected)


def test_pixel_padding_has_no_part_in_the_stretch_and_is_black(tmp_path: Path) -> None:
    values = np.array([[-2000, 0], [100, 400]], dtype=np.int16)
    path = dicom_file(tmp_path / "a.dcm", values, PixelPaddingValue=-2000)
    assert read_picture(path).tolist() == [[0, 0], [64, 255]]
    inverted = dicom_file(tmp_path / "b.dcm", values, PixelPaddingValue=-2000, PhotometricInterpretation="MONOCHROME1")
    assert read_picture(inverted).tolist() == [[0, 255], [191, 0]]
    ranged = dicom_file(tmp_path / "c.dcm", values, PixelPaddingValue=-2000, PixelPaddingRangeLimit=50)
    assert read_picture(ranged).tolist() == [[0, 0], [0, 255]]
    whole = dicom_file(tmp_path / "d.dcm", values * 0, PixelPaddingValue=0)
    assert read_picture(whole).max() == 0


@pytest.mark.parametrize(
    "tags", [{"WindowWidth": 0}, {"WindowWidth": 0.5}, {"WindowWidth": None}, {"WindowWidth": [0, 9]}]
)
def test_a_window_of_no_width_is_none(tmp_path: Path, tags: dict[str, object]) -> None:
    path = dicom_file(tmp_path / "a.dcm", WindowCenter=40, **tags)
    assert read_picture(path).tolist() == [[0, 64], [128, 255]]


def test_a_file_without_preamble_and_meta_information_is_read(tmp_path: Path) -> None:
    import pydicom

    data = pydicom.dcmread(dicom_file(tmp_path / "a.dcm"))
    del data.file_meta
    bare = tmp_path / "bare.dcm"
    pydicom.dcmwrite(bare, data, implicit_vr=True, little_endian=True, enforce_file_format=False)
    bare.write_bytes(bare.read_bytes()[132:])
    assert b"DICM" not in bare.read_bytes()
    assert picture_size(bare) == (2, 2)
    assert read_picture(bare).tolist() == [[0, 64], [128, 255]]
    bare.write_bytes(b"\0" * 400)
    with pytest.raises(PictureError, match="is not a readable DICOM file"):
        picture_size(bare)


def test_colours_of_sixteen_bits_are_scaled_and_not_cut_to_their_low_byte(tmp_path: Path) -> None:
    values = np.array([[[65535, 256, 0]] * 2] * 2, dtype=np.uint16)
    path = dicom_file(
        tmp_path / "a.dcm", VALUES, SamplesPerPixel=3, PlanarConfiguration=0, PhotometricInterpretation="RGB",
        PixelRepresentation=0, PixelData=values.astype("<u2").tobytes(),
    )  # fmt: skip
    assert read_picture(path)[0, 0].tolist() == [255, 1, 0]


@pytest.mark.parametrize(
    "name", ["MR_small_RLE", "MR_small_jpeg_ls_lossless", "MR_small_jp2klossless", "MR_small_bigendian"]
)
def test_lossless_files_give_the_pixels_of_their_plain_twin(name: str) -> None:
    assert np.array_equal(read_picture(sample(f"{name}.dcm")), read_picture(sample("MR_small.dcm")))


def test_jpeg_lossless_is_read() -> None:
    plain = read_picture(sample("SC_rgb_rle.dcm"))
    assert np.array_equal(read_picture(sample("SC_rgb_jpeg_gdcm.dcm")), plain)


def test_a_syntax_without_decoder_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from pydicom.pixels.decoders.base import Decoder

    monkeypatch.setattr(Decoder, "available_plugins", property(lambda decoder: ()))
    monkeypatch.setattr(Decoder, "is_available", property(lambda decoder: False))
    monkeypatch.setattr(Decoder, "_validate_plugins", lambda *_: (_ for _ in ()).throw(RuntimeError("none")))
    with pytest.raises(PictureError, match=r"no decoder for JPEG-LS Lossless .*trimtab\[medclm\].*python-gdcm"):
        read_picture(sample("MR_small_jpeg_ls_lossless.dcm"))
    with pytest.raises(PictureError, match="needs pip install pylibjpeg pylibjpeg-libjpeg"):
        read_picture(sample("JPGExtended.dcm"))

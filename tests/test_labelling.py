"""docs/labelling.md, followed from its first line to its last."""

import pytest

import labelling_loop
from helpers import rows


@pytest.mark.long
def test_the_page_is_followed(tmp_path):
    labelling_loop.main(["--folder", str(tmp_path / "loop")])
    assert float(rows(tmp_path / "loop/round2/efficientnet_lite0_unet_evaluation_log.csv")[-1]["dice"]) > 0.9
    assert len(list((tmp_path / "loop/my_data/train/masks").iterdir())) == 30


def test_what_nobody_does_by_hand_is_an_error(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```\n# by hand: dance\n```\n")
    with pytest.raises(ValueError, match="dance"):
        labelling_loop.main(["--folder", str(tmp_path / "loop"), "--page", str(page)])

"""KuaiRec 2.0 in the official form, written by hand from the README."""

import zipfile
from pathlib import Path

import pytest

from onerec.data.settings import DataSettings, FeedbackKind
from onerec.data.sources.kuairec import load
from onerec.data.tables import ITEM, TIMESTAMP, USER
from onerec.errors import DataError

USERS = (
    "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,follow_user_num,"
    "follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,friend_user_num_range,register_days,"
    "register_days_range," + ",".join(f"onehot_feat{index}" for index in range(18)) + "\n"
    '0,high_active,0,0,0,5,"(0,10]",0,0,0,0,107,61-90,' + ",".join("0" for _ in range(18)) + "\n"
)
FILES = {
    "big_matrix.csv": "user_id,video_id,play_duration,video_duration,time,date,timestamp,watch_ratio\n"
    "0,3650,13838,10867,2020-07-05 00:08:23.438,20200705,1593878903.438,1.273397\n"
    "0,10,0,7000,,,,0.0\n",
    "small_matrix.csv": "user_id,video_id\nnever,read\n",
    "item_categories.csv": 'video_id,feat\n10,[8]\n11,"[27, 9]"\n3650,[]\n',
    "user_features.csv": USERS,
}
CAPTIONS = (
    "video_id,manual_cover_text,caption,topic_tag,first_level_category_id,first_level_category_name,"
    "second_level_category_id,second_level_category_name,third_level_category_id,third_level_category_name\n"
    '10,UNKNOWN,"精神小伙,\n第二行 ""!""",[],8,颜值,673,颜值随拍,-124,UNKNOWN\n'
    "1 broken line\n"
    "11,封面,,[五爱街],27,高新数码,-124,UNKNOWN,-124,UNKNOWN\n"
)


def write_zip(folder: Path, files: dict[str, str]) -> Path:
    path = folder / "mine.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(f"KuaiRec 2.0/data/{name}", text)
    return path


def test_plays_tags_captions_and_users(tmp_path: Path) -> None:
    tables = load(
        DataSettings(source="kuairec", path=write_zip(tmp_path, FILES | {"kuairec_caption_category.csv": CAPTIONS}))
    )
    assert tables.events.select(USER, ITEM, TIMESTAMP, "play_time_s", "duration_s").rows() == [
        (0, 3650, 1593878903.438, pytest.approx(13.838), pytest.approx(10.867)),
        (0, 10, None, 0.0, 7.0),
    ]
    assert tables.events["watch_ratio"].to_list() == pytest.approx([1.273397, 0.0])
    assert tables.feedback["watch_ratio"] is FeedbackKind.RATING
    first, second, third = tables.items.rows(named=True)
    assert (first[ITEM], first["tags"], first["caption"]) == (10, "8", '精神小伙,\n第二行 "!"')
    assert (first["manual_cover_text"], first["topic_tag"], first["third_level_category_name"]) == (None, None, None)
    assert (second["tags"], second["caption"], second["manual_cover_text"]) == ("27,9", None, "封面")
    assert (third[ITEM], third["tags"], third["caption"]) == (3650, None, None)
    assert tables.users is not None
    assert tables.users.row(0, named=True)["register_days"] == 107
    assert tables.notes == ("kuairec_caption_category.csv: 1 malformed lines (first 4) left out",)


def test_the_caption_file_may_be_missing_the_others_not(tmp_path: Path) -> None:
    tables = load(DataSettings(source="kuairec", path=write_zip(tmp_path, FILES)))
    assert tables.items.columns == [ITEM, "tags"]
    assert tables.notes == ("kuairec_caption_category.csv is not there: videos have no text",)
    partial = {name: text for name, text in FILES.items() if name != "item_categories.csv"}
    with pytest.raises(DataError, match=r"expected also item_categories\.csv"):
        load(DataSettings(source="kuairec", path=write_zip(tmp_path, partial)))


def test_malformed_plays_are_told(tmp_path: Path) -> None:
    broken = FILES | {"big_matrix.csv": FILES["big_matrix.csv"] + "0,x,1,1,,,,1\n0,1,1\n"}
    with pytest.raises(DataError, match=r"big_matrix\.csv: 2 malformed lines, first line 4: video_id is 'x'"):
        load(DataSettings(source="kuairec", path=write_zip(tmp_path, broken)))

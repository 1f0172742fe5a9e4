"""The table of what became of every tensor."""

from small_sam import small_lora, small_sam

from weights_conversion import convert_lora_sam, convert_sam, format_report
from weights_conversion.report import Row


def test_tensors_that_differ_in_numbers_share_a_line():
    rows = [
        *(Row(f"blocks.{i}.attn.weight", (6, 4), f"blocks.{i}.attn.kernel", (4, 6), "transposed") for i in range(12)),
        *(Row(f"w_a_{i:03d}", (2, 4), f"blocks.{i // 2}.q", (4, 2), "transposed") for i in range(0, 24, 2)),
        Row("blocks.3.table", (7, 2), "blocks.3.table", (5, 2), "resized"),
        Row("blocks.7.table", (7, 2), "blocks.7.table", (5, 2), "resized"),
        Row("blocks.9.table", (7, 2), "blocks.9.table", (5, 2), "resized"),
        Row("old", (), "", None, "ignored: of no use to the model"),
        Row("", None, "head.bias", (3,), "fresh"),
    ]
    assert format_report(rows) == (
        "blocks.0-11 -> blocks.0-11\n"
        "  12 x  attn.weight  6 x 4  attn.kernel  4 x 6  transposed\n"
        "\n"
        "blocks.0-11\n"
        "  12 x  w_a_000-022 by 2  2 x 4  q  4 x 2  transposed\n"
        "\n"
        "blocks.3,7,9 -> blocks.3,7,9\n"
        "   3 x  table  7 x 2  table  5 x 2  resized\n"
        "\n"
        "(by itself)\n"
        "   1 x  old  ()  ignored: of no use to the model\n"
        "\n"
        "head\n"
        "   1 x  bias  3  fresh\n"
        "\n"
        "29 tensors: 24 transposed, 3 resized, 1 ignored, 1 fresh"
    )


def test_every_tensor_has_a_row():
    rows: list[Row] = []
    source = small_sam()
    model = convert_sam(source, image_size=(64, 48), report=rows)
    assert {row.source for row in rows} == set(source)
    assert all(row.shape == source[row.source].shape for row in rows)
    resized = {row.source for row in rows if row.how == "resized"}
    blocks = {f"image_encoder.blocks.{block}.attn.rel_pos_{axis}" for block in (1, 3) for axis in "hw"}
    assert resized == blocks | {"image_encoder.pos_embed"}
    by_target = {row.target: row for row in rows}
    assert by_target["image_encoder.blocks.1.attn.rel_pos_h"].target_shape == (15, 8)
    assert by_target["image_encoder.blocks.1.attn.rel_pos_w"].target_shape == (11, 8)
    assert by_target["image_encoder.patch_embed.kernel"].target_shape == (192, 24)
    assert model.image_encoder.patch_embed.kernel.shape == (192, 24)


def test_what_a_lora_file_has_is_ignored_in_the_sam():
    rows: list[Row] = []
    sam, lora = small_sam(), small_lora()
    convert_lora_sam(sam, lora, image_size=32, report=rows)
    ignored = {row.source for row in rows if row.how == "ignored: the LoRA file has its own"}
    assert ignored == {name for name in sam if not name.startswith("image_encoder.")}
    assert {row.source for row in rows if row.target} == (set(sam) - ignored) | set(lora)

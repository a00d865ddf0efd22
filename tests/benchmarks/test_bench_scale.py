"""The benchmark of opening, on sizes that take seconds."""

from benchmarks import bench_scale


def test_every_size_is_a_row(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["bench_scale", "--samples", "320", "9600", "--shard", "32"])
    bench_scale.main()
    rows = [[cell.strip() for cell in line.split("|")] for line in capsys.readouterr().out.splitlines() if "|" in line]
    by_size = {row[1]: row for row in rows}
    assert by_size["320"][2] == "10"
    assert by_size["9,600"][2] == "300"
    assert by_size["640"][7] == "without indexes"
    # Of 301 shards a batch of 256 draws 172 on average when it is drawn from the whole, at most 128 x 2 in streams.
    assert 160 < int(by_size["whole"][2]) < 185
    assert 128 <= int(by_size["streams"][2]) <= 256
    assert abs(float(by_size["streams"][4]) - 1 / 3) < 0.02

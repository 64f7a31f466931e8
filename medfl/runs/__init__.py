"""What a run leaves on disk, as values that are written and read alike.

`files` lists the files of a run folder, each with the record that it holds; `records` and
`audit_records` are those records. The server writes through them (`medfl.server.run_folder`), and
`results` and `live_run` read a folder back, finished or growing. `grid_records` and `grid_table`
are what a grid of studies leaves beside its runs. Nothing here needs torch.
"""

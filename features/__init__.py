"""Signal and array mathematics: arrays in, arrays out.

No paths, no Zarr, no Dask, no pandas: every function here works on a numpy array in a notebook.
"""

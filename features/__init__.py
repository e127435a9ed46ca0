"""Signal and array mathematics: arrays in, arrays out.

No audio files, no Zarr, no Dask, no pandas: every function here works on a numpy array in a
notebook. The only files it opens are weights of networks.
"""

"""From audio files to the feature store: catalog, decoding, planning, Dask jobs, storage, command line."""

"""The programs of this repository. In a wheel this folder is `causaldiffae.scripts`."""

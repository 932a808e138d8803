"""Algorithm containers, the form in which most challenges take submissions today: a folder to build one from."""

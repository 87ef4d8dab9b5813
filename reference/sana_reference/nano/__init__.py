"""The nano model: a real Sana in miniature, trained on scenes that a program draws and a program can judge."""

"""The explorer: a web page on which sliders and buttons set the variables of an image.

registry        the models on offer and their images
session         runs a model; abductions are cached
uploads         converts an uploaded file to an image of the data set
views           renders results as HTML; graph_drawing the causal graph
page, server    the gradio page and its server; the only modules that import gradio
"""

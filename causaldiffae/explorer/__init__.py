"""The explorer: a page in the browser on which sliders ask a trained model counterfactual questions.

registry     which models there are, and what pictures to begin with
session    one question and its answer; abductions are remembered, so a slider's move costs only the prediction
uploads   a file of anybody's into a picture, or one sentence why not
views     answers as HTML: pictures side by side, difference map, table, downloads
graph_svg the causal graph with the values on it
page      the page itself (gradio)
server    its address on this machine, and on no other

All but the last two know nothing of gradio.
"""

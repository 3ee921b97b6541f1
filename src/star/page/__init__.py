"""A web page that draws: `python app.py ckpt=RUN`."""

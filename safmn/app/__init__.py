"""The page of ``safmn app``: images are dropped into a browser and upscaled on this computer."""

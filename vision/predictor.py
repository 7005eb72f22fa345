"""Where `Predictor` was before it moved; kept for programs that import it from here."""

from vision.prediction.predictor import Prediction, Predictor

__all__ = ["Prediction", "Predictor"]

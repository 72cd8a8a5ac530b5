"""ROIAlign and the RoI pooling operators that the Mask R-CNN paper compares it with."""

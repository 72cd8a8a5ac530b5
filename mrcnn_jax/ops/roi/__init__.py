"""ROIAlign, and the poolings that the Mask R-CNN paper compares it with."""

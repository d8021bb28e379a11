"""What `streaming.vision` derives its classes from and subclasses nothing of here."""


class VisionDataset:
    pass


class CIFAR10:
    pass

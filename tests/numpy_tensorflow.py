"""The few layers and image functions of TensorFlow that the `mtcnn` wheel calls, in numpy, after their documentation.
With them the wheel's own code runs, unchanged, on a machine without TensorFlow."""
import contextlib, importlib, sys, types

import numpy as np


class Tensor(np.ndarray):
    "An array with the method that TensorFlow's tensors have."
    def numpy(self): return np.asarray(self)


def tensor(x): return np.asarray(x, np.float32).view(Tensor)


class Layer:
    count = 0 # weights that it takes
    def __init__(self, *args, name=None, **kw): self.args, self.kw, self.weights = args, kw, []
    def build(self, shape): pass
    def compute_output_shape(self, shape): return shape


class Conv2D(Layer):
    count = 2
    def __call__(self, x):
        kernel, bias = self.weights # (h, w, in, out)
        h, w = kernel.shape[:2]
        rows, cols = x.shape[1] - h + 1, x.shape[2] - w + 1
        if min(rows, cols) < 1: raise InvalidArgumentError
        out = np.zeros((len(x), rows, cols, kernel.shape[3]))
        for i in range(h):
            for j in range(w): out += x[:, i:i + rows, j:j + cols].astype(float)@kernel[i, j]
        return activate(out + bias, self.kw)


class Dense(Layer):
    count = 2
    def __call__(self, x): return activate(x.astype(float)@self.weights[0] + self.weights[1], self.kw)


def activate(x, kw):
    if kw.get('activation') != 'softmax': return tensor(x)
    e = np.exp(x - x.max(-1, keepdims=True))
    return tensor(e/e.sum(-1, keepdims=True))


class PReLU(Layer):
    count = 1
    def __call__(self, x): return tensor(np.where(x > 0, x, self.weights[0]*x))


class MaxPooling2D(Layer):
    def __call__(self, x):
        (size, _), (step, _) = self.kw['pool_size'], self.kw['strides']
        same = self.kw['padding'] == 'same'
        out = [-(-n//step) if same else (n - size)//step + 1 for n in x.shape[1:3]]
        need = [max((o - 1)*step + size - n, 0)*same for o, n in zip(out, x.shape[1:3])]
        x = np.pad(x, [(0, 0), *((p//2, p - p//2) for p in need), (0, 0)], constant_values=-np.inf)
        y = np.full((len(x), *out, x.shape[3]), -np.inf)
        for i in range(size):
            for j in range(size):
                y = np.maximum(y, x[:, i:i + step*out[0]:step, j:j + step*out[1]:step][:, :out[0], :out[1]])
        return tensor(y)


class Permute(Layer):
    def __call__(self, x): return x.transpose(0, *self.args[0])


class Flatten(Layer):
    def __call__(self, x): return tensor(np.ascontiguousarray(x).reshape(len(x), -1))


class Model:
    def __init__(self, **kw): pass
    def build(self, shape=None): pass
    def __call__(self, x): return self.call(x)
    def set_weights(self, weights):
        weights = list(weights)
        for layer in vars(self).values(): # in the order in which the model made them
            if isinstance(layer, Layer): layer.weights = [weights.pop(0) for _ in range(layer.count)]
        assert not weights


class InvalidArgumentError(Exception): pass


class NotFoundError(Exception): pass


def resize(images, size, method):
    "Each new pixel is the mean of the area that it covers (ResizeMethod.AREA)."
    assert method == 'area'
    out = np.asarray(images, float)
    for axis, new in ((1, int(size[0])), (2, int(size[1]))):
        old = out.shape[axis]
        if new < 1: raise InvalidArgumentError
        w = np.zeros((new, old))
        for i in range(new):
            a, b = i*old/new, (i + 1)*old/new
            for j in range(int(a), min(int(np.ceil(b)), old)): w[i, j] = (min(b, j + 1) - max(a, j))/(b - a)
        out = np.moveaxis(np.tensordot(w, out, (1, axis)), 0, axis)
    return tensor(out)


def crop_and_resize(image, boxes, box_indices, crop_size):
    "Bilinear samples at evenly spaced points of normalised boxes; 0 outside of the picture."
    h, w = image.shape[1:3]
    out = np.zeros((len(boxes), *crop_size, 3))
    for n, (y1, x1, y2, x2) in enumerate(boxes):
        ys = y1*(h - 1) + np.arange(crop_size[0])*(y2 - y1)*(h - 1)/(crop_size[0] - 1)
        xs = x1*(w - 1) + np.arange(crop_size[1])*(x2 - x1)*(w - 1)/(crop_size[1] - 1)
        for i, y in enumerate(ys):
            for j, x in enumerate(xs):
                if not (0 <= y <= h - 1 and 0 <= x <= w - 1): continue
                y0, x0, b, a = int(y), int(x), y % 1, x % 1
                y3, x3 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
                p = image[box_indices[n]]
                out[n, i, j] = (1 - b)*((1 - a)*p[y0, x0] + a*p[y0, x3]) + b*((1 - a)*p[y3, x0] + a*p[y3, x3])
    return tensor(out)


def modules():
    "Name -> module, to be put into `sys.modules`."
    def module(name, **names):
        m = types.ModuleType(name)
        vars(m).update(names)
        return m
    layers = module('layers', Conv2D=Conv2D, Dense=Dense, PReLU=PReLU, MaxPooling2D=MaxPooling2D, Permute=Permute,
                    Flatten=Flatten)
    image = module('image', resize=resize, crop_and_resize=crop_and_resize,
                   ResizeMethod=types.SimpleNamespace(AREA='area'))
    tf = module('tensorflow', keras=module('keras', layers=layers, Model=Model), image=image, float32=np.float32,
                float16=np.float16, device=lambda name: contextlib.nullcontext(), is_tensor=lambda x: False,
                errors=module('errors', InvalidArgumentError=InvalidArgumentError), Tensor=Tensor)
    path = 'tensorflow.python.framework.errors_impl'
    inner = {'.'.join(path.split('.')[:k]): module('.'.join(path.split('.')[:k])) for k in (2, 3)}
    return {'tensorflow': tf, **inner, path: module(path, NotFoundError=NotFoundError)}


@contextlib.contextmanager
def published_mtcnn():
    "Yield the class `MTCNN` of the wheel, run on numpy."
    added, before = modules(), set(sys.modules)
    saved = {k: sys.modules.pop(k) for k in list(sys.modules) if k.split('.')[0] in ('tensorflow', 'mtcnn')}
    sys.modules.update(added)
    try: yield importlib.import_module('mtcnn').MTCNN
    finally:
        for k in set(sys.modules) - before:
            if k.split('.')[0] in ('tensorflow', 'mtcnn'): del sys.modules[k]
        sys.modules.update(saved)

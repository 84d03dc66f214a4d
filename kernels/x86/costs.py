from hawq_tvm.core.ops import Conv2d
from hawq_tvm.kernels.interface import Request
def conv2d_cost(request: Request) -> float:
    op = request.node.op
    return request.batch*op.macs(request.node.type)*0.0022/1e3+1.0

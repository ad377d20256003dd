// Signed adder of ACC_BITS: wraps, or holds at the ends of the range where it saturates.
module adder #(
    parameter ACC_BITS = 32,
    parameter OPERAND_BITS = 16,
    parameter SATURATE = 0
) (
    input  wire signed [    ACC_BITS-1:0] x,
    input  wire signed [OPERAND_BITS-1:0] y,
    output wire signed [    ACC_BITS-1:0] sum
);
    // One bit more than either operand: the exact sum.
    localparam WIDE = (ACC_BITS > OPERAND_BITS ? ACC_BITS : OPERAND_BITS) + 1;
    localparam signed [WIDE-1:0] TOP = {{WIDE - ACC_BITS + 1{1'b0}}, {ACC_BITS - 1{1'b1}}};
    localparam signed [WIDE-1:0] BOTTOM = ~TOP;

    wire signed [WIDE-1:0] total = x + y;
    wire high = (SATURATE != 0) && total > TOP;
    wire low = (SATURATE != 0) && total < BOTTOM;
    assign sum = high ? TOP[ACC_BITS-1:0] : low ? BOTTOM[ACC_BITS-1:0] : total[ACC_BITS-1:0];
endmodule

// `add`: signed addition of ACC_BITS, which must be a parameter where this is included. It wraps,
// or holds at the ends of the range where SATURATE is not 0. ADDEND_BITS: width of what is added.
// A function, not a module, so that a clocked block can call it and no net carries the sum.
localparam WIDE = (ACC_BITS > ADDEND_BITS ? ACC_BITS : ADDEND_BITS) + 1;
localparam signed [WIDE-1:0] TOP = {{WIDE - ACC_BITS + 1{1'b0}}, {ACC_BITS - 1{1'b1}}};
localparam signed [WIDE-1:0] BOTTOM = ~TOP;

function [ACC_BITS-1:0] add(
    input signed [ACC_BITS-1:0] x, input signed [ADDEND_BITS-1:0] y
);
    reg signed [WIDE-1:0] total;
    begin
        total = x + y;
        if (SATURATE != 0 && total > TOP) total = TOP;
        if (SATURATE != 0 && total < BOTTOM) total = BOTTOM;
        add = total[ACC_BITS-1:0];
    end
endfunction

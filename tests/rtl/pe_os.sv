// One output-stationary PE: operands pass through, the sum stays.
//
// strike[0..3]: the fault acts at this edge on ifmap, filter, psum, or the net mul. A register
// then captures its masked next value, so that what it holds after the edge is masked: a flip
// strikes at one edge, a stuck bit at every one, held values included.
module pe_os #(
    parameter OPERAND_BITS = 8,
    parameter PRODUCT_BITS = 16,
    parameter ACC_BITS = 32,
    parameter SATURATE = 0,
    parameter MUTANT = 0  // not 0: wrong on purpose, to see that the comparison notices
) (
    input wire clk,
    input wire rst,
    input wire en,  // the operands held are of a product of this fold
    input wire first,  // ... of its first: the bias is loaded
    input wire signed [OPERAND_BITS-1:0] x_in,
    input wire signed [OPERAND_BITS-1:0] w_in,
    input wire signed [ACC_BITS-1:0] bias,
    input wire [3:0] strike,
    input wire [63:0] f_and,
    input wire [63:0] f_or,
    input wire [63:0] f_xor,
    output reg signed [OPERAND_BITS-1:0] ifmap  /* verilator public_flat_rw */,
    output reg signed [OPERAND_BITS-1:0] filter  /* verilator public_flat_rw */,
    output reg signed [ACC_BITS-1:0] psum  /* verilator public_flat_rw */
);
    wire signed [PRODUCT_BITS-1:0] product = ifmap * filter;
    wire [PRODUCT_BITS-1:0] struck = (
        (product & f_and[PRODUCT_BITS-1:0]) | f_or[PRODUCT_BITS-1:0]
    ) ^ f_xor[PRODUCT_BITS-1:0];
    wire signed [PRODUCT_BITS-1:0] mul = strike[3] ? struck : product;

    localparam ADDEND_BITS = PRODUCT_BITS;
    `include "adder.svh"

    // A mutant whose stuck bits let go of a psum that is held.
    wire psum_strike = strike[2] && !(MUTANT == 2 && !en);
    wire load_bias = first && MUTANT != 1;

    always @(posedge clk) begin
        ifmap <= strike[0] ? ((x_in & f_and[OPERAND_BITS-1:0]) | f_or[OPERAND_BITS-1:0])
            ^ f_xor[OPERAND_BITS-1:0] : x_in;
        filter <= strike[1] ? ((w_in & f_and[OPERAND_BITS-1:0]) | f_or[OPERAND_BITS-1:0])
            ^ f_xor[OPERAND_BITS-1:0] : w_in;
        if (psum_strike)
            psum <= (((rst ? {ACC_BITS{1'b0}} : en ? add(load_bias ? bias : psum, mul) : psum)
                & f_and[ACC_BITS-1:0]) | f_or[ACC_BITS-1:0]) ^ f_xor[ACC_BITS-1:0];
        else if (rst) psum <= {ACC_BITS{1'b0}};
        else if (en) psum <= add(load_bias ? bias : psum, mul);
    end
endmodule

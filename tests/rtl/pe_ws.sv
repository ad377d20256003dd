// One weight-stationary PE: one operand rests while the other and the sum pass.
//
// strike[0..3]: the fault acts at this edge on moving, resident, psum, or the net mul; see
// pe_os.sv for what that means.
module pe_ws #(
    parameter OPERAND_BITS = 8,
    parameter PRODUCT_BITS = 16,
    parameter ACC_BITS = 32,
    parameter SATURATE = 0,
    parameter MUTANT = 0  // not 0: wrong on purpose, to see that the comparison notices
) (
    input wire clk,
    input wire rst,
    input wire load,  // the resident operand shifts down
    input wire signed [OPERAND_BITS-1:0] x_in,
    input wire signed [OPERAND_BITS-1:0] w_in,
    input wire signed [ACC_BITS-1:0] psum_in,
    input wire [3:0] strike,
    input wire [63:0] f_and,
    input wire [63:0] f_or,
    input wire [63:0] f_xor,
    output reg signed [OPERAND_BITS-1:0] moving,
    output reg signed [OPERAND_BITS-1:0] resident,
    output reg signed [ACC_BITS-1:0] psum
);
    wire signed [PRODUCT_BITS-1:0] product = moving * resident;
    wire [PRODUCT_BITS-1:0] struck = (
        (product & f_and[PRODUCT_BITS-1:0]) | f_or[PRODUCT_BITS-1:0]
    ) ^ f_xor[PRODUCT_BITS-1:0];
    wire signed [PRODUCT_BITS-1:0] mul = strike[3] ? struck : product;

    localparam ADDEND_BITS = PRODUCT_BITS;
    `include "adder.svh"

    wire [OPERAND_BITS-1:0] moving_next = rst ? {OPERAND_BITS{1'b0}} : x_in;
    wire [OPERAND_BITS-1:0] resident_next = rst ? {OPERAND_BITS{1'b0}}
        : load || MUTANT == 1 ? w_in : resident;
    wire [ACC_BITS-1:0] psum_next = rst ? {ACC_BITS{1'b0}} : add(psum_in, mul);
    // A mutant whose stuck bits let go of an operand that is held.
    wire resident_strike = strike[1] && !(MUTANT == 2 && !load);

    always @(posedge clk) begin
        moving <= strike[0] ? ((moving_next & f_and[OPERAND_BITS-1:0]) | f_or[OPERAND_BITS-1:0])
            ^ f_xor[OPERAND_BITS-1:0] : moving_next;
        resident <= resident_strike
            ? ((resident_next & f_and[OPERAND_BITS-1:0]) | f_or[OPERAND_BITS-1:0])
            ^ f_xor[OPERAND_BITS-1:0] : resident_next;
        psum <= strike[2] ? ((psum_next & f_and[ACC_BITS-1:0]) | f_or[ACC_BITS-1:0])
            ^ f_xor[ACC_BITS-1:0] : psum_next;
    end
endmodule

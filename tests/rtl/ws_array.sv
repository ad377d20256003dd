// Weight-stationary array of ROWS x COLS PEs: `moving` goes right, sums go down, `resident`
// shifts down while it is loaded and then rests.
//
// Element [r*COLS + c] of a packed port belongs to PE (r, c), counted from the low end.
module ws_array #(
    parameter ROWS = 4,
    parameter COLS = 4,
    parameter OPERAND_BITS = 8,
    parameter PRODUCT_BITS = 16,
    parameter ACC_BITS = 32,
    parameter SATURATE = 0,
    parameter MUTANT = 0
) (
    input wire clk,
    input wire rst,
    input wire load,
    input wire [ROWS*OPERAND_BITS-1:0] left,
    input wire [COLS*OPERAND_BITS-1:0] top,
    // One fault: where (site 0 moving, 1 resident, 2 psum, 3 mul), whether at this edge, masks.
    input wire f_on,
    input wire [1:0] f_site,
    input wire [15:0] f_row,
    input wire [15:0] f_col,
    input wire [63:0] f_and,
    input wire [63:0] f_or,
    input wire [63:0] f_xor,
    output wire [ROWS*COLS*OPERAND_BITS-1:0] moving,
    output wire [ROWS*COLS*OPERAND_BITS-1:0] resident,
    output wire [ROWS*COLS*ACC_BITS-1:0] psum
);
    genvar r, c;
    generate
        for (r = 0; r < ROWS; r = r + 1) begin : row
            for (c = 0; c < COLS; c = c + 1) begin : col
                wire [OPERAND_BITS-1:0] x_in, w_in;
                wire [ACC_BITS-1:0] psum_in;
                if (c == 0) assign x_in = left[r*OPERAND_BITS+:OPERAND_BITS];
                else assign x_in = moving[(r*COLS+c-1)*OPERAND_BITS+:OPERAND_BITS];
                if (r == 0) assign w_in = top[c*OPERAND_BITS+:OPERAND_BITS];
                else assign w_in = resident[((r-1)*COLS+c)*OPERAND_BITS+:OPERAND_BITS];
                if (r == 0) assign psum_in = {ACC_BITS{1'b0}};
                else assign psum_in = psum[((r-1)*COLS+c)*ACC_BITS+:ACC_BITS];
                wire here = f_on && f_row == r && f_col == c;
                pe_ws #(
                    .OPERAND_BITS(OPERAND_BITS), .PRODUCT_BITS(PRODUCT_BITS),
                    .ACC_BITS(ACC_BITS), .SATURATE(SATURATE), .MUTANT(MUTANT)
                ) pe (
                    .clk(clk), .rst(rst), .load(load),
                    .x_in(x_in), .w_in(w_in), .psum_in(psum_in),
                    .strike(here ? 4'b0001 << f_site : 4'b0000),
                    .f_and(f_and), .f_or(f_or), .f_xor(f_xor),
                    .moving(moving[(r*COLS+c)*OPERAND_BITS+:OPERAND_BITS]),
                    .resident(resident[(r*COLS+c)*OPERAND_BITS+:OPERAND_BITS]),
                    .psum(psum[(r*COLS+c)*ACC_BITS+:ACC_BITS])
                );
            end
        end
    endgenerate
endmodule

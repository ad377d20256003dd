// Output-stationary array of ROWS x COLS PEs: ifmap moves right, filter down.
//
// Element [r*COLS + c] of a packed port belongs to PE (r, c), counted from the low end.
// The edge under reset clears the array and latches the first operands of column 0 and row 0.
module os_array #(
    parameter ROWS = 4,
    parameter COLS = 4,
    parameter OPERAND_BITS = 8,
    parameter PRODUCT_BITS = 16,
    parameter ACC_BITS = 32,
    parameter SATURATE = 0,
    parameter FAULTS = 1,  // 0: without the fault port
    parameter MUTANT = 0
) (
    input wire clk,
    input wire rst,
    input wire en,  // PE (0, 0) multiplies operands of a fold
    input wire first,
    input wire [ROWS*OPERAND_BITS-1:0] left,
    input wire [COLS*OPERAND_BITS-1:0] top,
    input wire [ROWS*COLS*ACC_BITS-1:0] bias,
    // One fault: where (site 0 ifmap, 1 filter, 2 psum, 3 mul), whether at this edge, masks.
    input wire f_on,
    input wire [1:0] f_site,
    input wire [15:0] f_row,
    input wire [15:0] f_col,
    input wire [63:0] f_and,
    input wire [63:0] f_or,
    input wire [63:0] f_xor,
    output wire [ROWS*COLS*OPERAND_BITS-1:0] ifmap,
    output wire [ROWS*COLS*OPERAND_BITS-1:0] filter,
    output wire [ROWS*COLS*ACC_BITS-1:0] psum
);
    // Control runs along the diagonals: PE (r, c) is r + c cycles behind PE (0, 0).
    localparam DIAGONALS = ROWS + COLS - 1;
    wire [DIAGONALS-1:0] en_at, first_at;
    reg [DIAGONALS-1:0] en_past, first_past;
    assign en_at = DIAGONALS > 1 ? (en_past << 1) | {{DIAGONALS - 1{1'b0}}, en} : en;
    assign first_at = DIAGONALS > 1 ? (first_past << 1) | {{DIAGONALS - 1{1'b0}}, first} : first;
    always @(posedge clk) begin
        en_past <= rst ? {DIAGONALS{1'b0}} : en_at;
        first_past <= rst ? {DIAGONALS{1'b0}} : first_at;
    end

    genvar r, c;
    generate
        for (r = 0; r < ROWS; r = r + 1) begin : row
            for (c = 0; c < COLS; c = c + 1) begin : col
                wire [OPERAND_BITS-1:0] x_in, w_in;
                if (c == 0) assign x_in = left[r*OPERAND_BITS+:OPERAND_BITS];
                else
                    assign x_in = rst ? {OPERAND_BITS{1'b0}}
                        : ifmap[(r*COLS+c-1)*OPERAND_BITS+:OPERAND_BITS];
                if (r == 0) assign w_in = top[c*OPERAND_BITS+:OPERAND_BITS];
                else
                    assign w_in = rst ? {OPERAND_BITS{1'b0}}
                        : filter[((r-1)*COLS+c)*OPERAND_BITS+:OPERAND_BITS];
                wire here = (FAULTS != 0) && f_on && f_row == r && f_col == c;
                pe_os #(
                    .OPERAND_BITS(OPERAND_BITS), .PRODUCT_BITS(PRODUCT_BITS),
                    .ACC_BITS(ACC_BITS), .SATURATE(SATURATE), .MUTANT(MUTANT)
                ) pe (
                    .clk(clk), .rst(rst), .en(en_at[r+c]), .first(first_at[r+c]),
                    .x_in(x_in), .w_in(w_in),
                    .bias(bias[(r*COLS+c)*ACC_BITS+:ACC_BITS]),
                    .strike(here ? 4'b0001 << f_site : 4'b0000),
                    .f_and(f_and), .f_or(f_or), .f_xor(f_xor),
                    .ifmap(ifmap[(r*COLS+c)*OPERAND_BITS+:OPERAND_BITS]),
                    .filter(filter[(r*COLS+c)*OPERAND_BITS+:OPERAND_BITS]),
                    .psum(psum[(r*COLS+c)*ACC_BITS+:ACC_BITS])
                );
            end
        end
    endgenerate
endmodule

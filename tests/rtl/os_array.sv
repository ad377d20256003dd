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
    parameter VERIFY = 1,  // 0: the bare array, its registers neither struck nor shown by ports
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
    reg [DIAGONALS-1:0] en_past, first_past;
    always @(posedge clk) begin
        en_past <= rst ? 0 : {en_past, en};
        first_past <= rst ? 0 : {first_past, first};
    end

    genvar r, c;
    generate
        for (r = 0; r < ROWS; r = r + 1) begin : row
            for (c = 0; c < COLS; c = c + 1) begin : col
                wire [OPERAND_BITS-1:0] x_in, w_in, x_out, w_out;
                wire [ACC_BITS-1:0] sum;
                wire en_here, first_here, here;
                if (c == 0) assign x_in = left[r*OPERAND_BITS+:OPERAND_BITS];
                else assign x_in = rst ? {OPERAND_BITS{1'b0}} : row[r].col[c-1].x_out;
                if (r == 0) assign w_in = top[c*OPERAND_BITS+:OPERAND_BITS];
                else assign w_in = rst ? {OPERAND_BITS{1'b0}} : row[r-1].col[c].w_out;
                if (r + c == 0) assign {en_here, first_here} = {en, first};
                else assign {en_here, first_here} = {en_past[r+c-1], first_past[r+c-1]};
                assign here = (VERIFY != 0) && f_on && f_row == r && f_col == c;
                pe_os #(
                    .OPERAND_BITS(OPERAND_BITS), .PRODUCT_BITS(PRODUCT_BITS),
                    .ACC_BITS(ACC_BITS), .SATURATE(SATURATE), .MUTANT(MUTANT)
                ) pe (
                    .clk(clk), .rst(rst), .en(en_here), .first(first_here),
                    .x_in(x_in), .w_in(w_in),
                    .bias(bias[(r*COLS+c)*ACC_BITS+:ACC_BITS]),
                    .strike(here ? 4'b0001 << f_site : 4'b0000),
                    .f_and(f_and), .f_or(f_or), .f_xor(f_xor),
                    .ifmap(x_out), .filter(w_out), .psum(sum)
                );
                if (VERIFY != 0) begin
                    assign ifmap[(r*COLS+c)*OPERAND_BITS+:OPERAND_BITS] = x_out;
                    assign filter[(r*COLS+c)*OPERAND_BITS+:OPERAND_BITS] = w_out;
                    assign psum[(r*COLS+c)*ACC_BITS+:ACC_BITS] = sum;
                end
            end
        end
        if (VERIFY == 0) begin
            assign ifmap = 0;
            assign filter = 0;
            assign psum = 0;
        end
    endgenerate
endmodule

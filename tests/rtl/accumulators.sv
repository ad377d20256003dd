// The memory below a weight-stationary array: adds the sums that leave it, fold by fold.
//
// Column 0 gets `en`, `first` and `addr` from outside; column c the same c edges later, as its
// sums leave. `first`: the word starts from `bias` of its column instead of what is stored.
module accumulators #(
    parameter COLS = 4,
    parameter DEPTH = 16,
    parameter ACC_BITS = 32,
    parameter SATURATE = 0
) (
    input wire clk,
    input wire rst,
    input wire en,
    input wire first,
    input wire [15:0] addr,
    input wire [COLS*ACC_BITS-1:0] bias,
    input wire [COLS*ACC_BITS-1:0] psum,
    output wire [COLS*DEPTH*ACC_BITS-1:0] words  // word a of column c at index c*DEPTH + a
);
    localparam ADDEND_BITS = ACC_BITS;
    `include "adder.svh"

    genvar c;
    generate
        for (c = 0; c < COLS; c = c + 1) begin : col
            reg [17:0] token;  // what the next column gets
            wire [17:0] now;
            if (c == 0) assign now = {en, first, addr};
            else assign now = col[c-1].token;
            always @(posedge clk) token <= rst ? 18'b0 : now;

            reg signed [ACC_BITS-1:0] memory[0:DEPTH-1];
            wire signed [ACC_BITS-1:0] so_far = now[16] ? bias[c*ACC_BITS+:ACC_BITS]
                : memory[now[15:0]];
            integer w;
            always @(posedge clk)
                if (rst) for (w = 0; w < DEPTH; w = w + 1) memory[w] <= 0;
                else if (now[17]) memory[now[15:0]] <= add(so_far, psum[c*ACC_BITS+:ACC_BITS]);

            genvar a;
            for (a = 0; a < DEPTH; a = a + 1) begin : word
                assign words[(c*DEPTH+a)*ACC_BITS+:ACC_BITS] = memory[a];
            end
        end
    endgenerate
endmodule

// Whether the fault acts at edge t (-1 is the edge under reset).
//
// A flip (level 0) acts once, at edge `first`, and never at reset; a level fault acts at every
// edge from `first` to `last`.
module fault_timer (
    input wire present,
    input wire level,
    input wire signed [31:0] first,
    input wire signed [31:0] last,
    input wire signed [31:0] t,
    output wire on
);
    assign on = present && (level ? t >= first && t <= last : t == first && t >= 0);
endmodule

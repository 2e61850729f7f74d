package sandbox

// DecodeTrouble is decodeTrouble, for tests.
var DecodeTrouble = decodeTrouble

// Settle does in this process all that comes before the tool.
func Settle(root, dir string, binds []Bind) (step string, err error) {
	return orders{Root: root, Dir: dir, Binds: binds}.settle()
}

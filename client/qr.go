package client

import (
	"bytes"
	"image"
	"image/color"
	"image/png"

	"github.com/boombuler/barcode/qr"
)

// maxQR is the number of bytes that a QR code holds at most: version 40, error correction level L
// (ISO/IEC 18004, table 7).
const maxQR = 2953

// quiet is the width of the light frame, in modules, that a reader needs around a QR code.
const quiet = 4

// qrCode is a QR code with its frame: its rows of modules, true where one is dark.
type qrCode [][]bool

// newQR returns the QR code of at most [maxQR] bytes. Level L, the least correction, makes the fewest and
// so the largest modules: a screen has no stains.
func newQR(text []byte) (qrCode, error) {
	code, err := qr.Encode(string(text), qr.L, qr.Unicode) // as bytes
	if err != nil {
		return nil, err
	}
	side := code.Bounds().Dx()
	all := make(qrCode, side+2*quiet)
	for y := range all {
		all[y] = make([]bool, len(all))
		for x := range all {
			if in := image.Pt(x-quiet, y-quiet); in.In(code.Bounds()) {
				all[y][x] = color.GrayModel.Convert(code.At(in.X, in.Y)).(color.Gray).Y < 0x80
			}
		}
	}
	return all, nil
}

// columns is how wide a terminal must be for q.
func (q qrCode) columns() int { return len(q) }

// terminal draws q with half blocks, two modules in a letter. It sets black on white itself (of the 256
// colours of xterm, the first and last of the cube, which no colour scheme changes), so that the code is
// dark on light in every terminal: not every reader takes it the other way round.
func (q qrCode) terminal() []byte {
	var b bytes.Buffer
	for y := 0; y < len(q); y += 2 {
		b.WriteString("\x1b[38;5;16;48;5;231m")
		for x := range q {
			below := y+1 < len(q) && q[y+1][x]
			switch {
			case q[y][x] && below:
				b.WriteString("█")
			case q[y][x]:
				b.WriteString("▀")
			case below:
				b.WriteString("▄")
			default:
				b.WriteByte(' ')
			}
		}
		b.WriteString("\x1b[0m\n")
	}
	return b.Bytes()
}

// dot is the side of a module in an image, in pixels.
const dot = 8

// png returns q as an image.
func (q qrCode) png() ([]byte, error) {
	side := len(q) * dot
	picture := image.NewPaletted(image.Rect(0, 0, side, side), color.Palette{color.White, color.Black})
	for y := range side {
		for x := range side {
			if q[y/dot][x/dot] {
				picture.SetColorIndex(x, y, 1)
			}
		}
	}
	var b bytes.Buffer
	err := png.Encode(&b, picture)
	return b.Bytes(), err
}

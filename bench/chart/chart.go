// Package chart draws the two kinds of pictures that the benchmarks need, as SVG files that any browser
// and text document shows: [Bars] for figures of several tools side by side, with their spread, and
// [Lines] for a figure against another. It is no plotting library: everything has the size and colours
// that fit the documents.
package chart

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"math"
	"strconv"
)

// Range is a figure with its spread. A figure that was not measured is NaN.
type Range struct{ Mid, Low, High float64 }

// Missing is a figure that was not measured.
func Missing() Range { return Range{math.NaN(), math.NaN(), math.NaN()} }

// Bars are groups of bars on a logarithmic scale, one bar in each group for each series.
type Bars struct {
	Title, Unit string
	Groups      []string
	Series      []BarSeries
}

// BarSeries has one figure for each group.
type BarSeries struct {
	Name   string
	Values []Range
}

// Lines are series of points on linear scales that begin at 0.
type Lines struct {
	Title, X, Y string
	Series      []LineSeries
}

// LineSeries are points in order of X. A dashed one is drawn so.
type LineSeries struct {
	Name   string
	Points []Point
	Dashed bool
}

// Point is one point, with the spread of Y.
type Point struct {
	X float64
	Y Range
}

const (
	width, height = 920.0, 460.0
	left, right   = 70.0, 20.0
	top, bottom   = 70.0, 60.0
)

// colours are told apart by most who see colours differently (Okabe and Ito).
func colour(i int) string {
	return []string{"#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999"}[i%7]
}

// canvas collects elements.
type canvas struct{ bytes.Buffer }

func newCanvas(title string) *canvas {
	c := &canvas{}
	fmt.Fprintf(c, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %g %g" font-family="sans-serif" font-size="12">`+"\n", width, height)
	fmt.Fprintf(c, `<rect width="%g" height="%g" fill="white"/>`+"\n", width, height)
	c.text(width/2, 22, "middle", title, `font-size="15" font-weight="bold"`)
	return c
}

func (c *canvas) text(x, y float64, anchor, text, more string) {
	fmt.Fprintf(c, `<text x="%.1f" y="%.1f" text-anchor="%s" %s>`, x, y, anchor, more)
	_ = xml.EscapeText(c, []byte(text)) // a buffer takes everything
	c.WriteString("</text>\n")
}

func (c *canvas) line(x1, y1, x2, y2 float64, style string) {
	fmt.Fprintf(c, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" %s/>`+"\n", x1, y1, x2, y2, style)
}

func (c *canvas) legend(names []string) {
	x := left
	for i, name := range names {
		fmt.Fprintf(c, `<rect x="%.1f" y="36" width="12" height="12" fill="%s"/>`+"\n", x, colour(i))
		c.text(x+17, 46, "start", name, "")
		x += 40 + 7*float64(len(name))
	}
}

// spread marks lowest and highest figure.
func (c *canvas) spread(x, low, high float64) {
	const style = `stroke="#222" stroke-width="1"`
	c.line(x, low, x, high, style)
	c.line(x-3, low, x+3, low, style)
	c.line(x-3, high, x+3, high, style)
}

func (c *canvas) end() []byte {
	c.WriteString("</svg>\n")
	return c.Bytes()
}

// SVG draws the bars.
func (b Bars) SVG() []byte {
	c := newCanvas(b.Title)
	names := make([]string, len(b.Series))
	low, high := math.Inf(1), math.Inf(-1)
	for i, s := range b.Series {
		names[i] = s.Name
		for _, v := range s.Values {
			if v.Mid > 0 {
				low, high = min(low, max(v.Low, v.Mid/10)), max(high, v.High)
			}
		}
	}
	if math.IsInf(low, 1) {
		low, high = 1, 10
	}
	from, to := math.Floor(math.Log10(low)), math.Ceil(math.Log10(high*1.15))
	if to <= from {
		to = from + 1
	}
	y := func(v float64) float64 {
		at := (math.Log10(max(v, math.Pow(10, from))) - from) / (to - from)
		return height - bottom - at*(height-top-bottom)
	}
	c.legend(names)
	c.text(14, (top+height-bottom)/2, "middle", b.Unit, fmt.Sprintf(`transform="rotate(-90 14 %.1f)"`, (top+height-bottom)/2))
	for e := from; e <= to; e++ {
		for m := 1.0; m < 10 && (e < to || m == 1); m++ {
			v := m * math.Pow(10, e)
			style := `stroke="#eee"`
			if m == 1 {
				style = `stroke="#bbb"`
				c.text(left-6, y(v)+4, "end", Number(v), "")
			}
			c.line(left, y(v), width-right, y(v), style)
		}
	}
	slot := (width - left - right) / float64(max(1, len(b.Groups)))
	bar := slot * 0.84 / float64(max(1, len(b.Series)))
	for g, name := range b.Groups {
		begin := left + slot*float64(g) + slot*0.08
		c.text(begin+slot*0.42, height-bottom+18, "middle", name, "")
		for i, s := range b.Series {
			v := s.Values[g]
			if !(v.Mid > 0) {
				continue
			}
			x := begin + bar*float64(i)
			fmt.Fprintf(c, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"/>`+"\n", x, y(v.Mid), bar*0.9, y(0)-y(v.Mid), colour(i))
			c.spread(x+bar*0.45, y(v.Low), y(v.High))
			c.text(x+bar*0.45, y(v.High)-4, "middle", Number(v.Mid), `font-size="10"`)
		}
	}
	c.text(left, height-14, "start", "logarithmic; bars are medians, lines lowest and highest", `font-size="11" fill="#555"`)
	return c.end()
}

// SVG draws the lines.
func (l Lines) SVG() []byte {
	c := newCanvas(l.Title)
	names := make([]string, len(l.Series))
	var maxX, maxY float64
	for i, s := range l.Series {
		names[i] = s.Name
		for _, p := range s.Points {
			maxX, maxY = max(maxX, p.X), max(maxY, p.Y.High)
		}
	}
	stepX, stepY := step(maxX), step(maxY)
	maxX, maxY = max(maxX, stepX), stepY*math.Ceil(maxY/stepY+0.05)
	x := func(v float64) float64 { return left + v/maxX*(width-left-right-20) }
	y := func(v float64) float64 { return height - bottom - v/maxY*(height-top-bottom) }
	c.legend(names)
	for v := 0.0; v <= maxY*1.0001; v += stepY {
		c.line(left, y(v), width-right, y(v), `stroke="#ddd"`)
		c.text(left-6, y(v)+4, "end", Number(v), "")
	}
	for v := 0.0; v <= maxX*1.0001; v += stepX {
		c.line(x(v), height-bottom, x(v), height-bottom+5, `stroke="#555"`)
		c.text(x(v), height-bottom+18, "middle", Number(v), "")
	}
	c.text((left+width-right)/2, height-20, "middle", l.X, "")
	c.text(14, (top+height-bottom)/2, "middle", l.Y, fmt.Sprintf(`transform="rotate(-90 14 %.1f)"`, (top+height-bottom)/2))
	for i, s := range l.Series {
		var points bytes.Buffer
		for _, p := range s.Points {
			fmt.Fprintf(&points, "%.1f,%.1f ", x(p.X), y(p.Y.Mid))
			if p.Y.High > p.Y.Low {
				c.spread(x(p.X), y(p.Y.Low), y(p.Y.High))
			}
			fmt.Fprintf(c, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`+"\n", x(p.X), y(p.Y.Mid), colour(i))
		}
		dash := ""
		if s.Dashed {
			dash = ` stroke-dasharray="6 4"`
		}
		fmt.Fprintf(c, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"%s/>`+"\n", points.String(), colour(i), dash)
	}
	return c.end()
}

// step is a round distance of marks, some five to ten up to v.
func step(v float64) float64 {
	if v <= 0 {
		return 1
	}
	power := math.Pow(10, math.Floor(math.Log10(v)))
	switch {
	case v/power < 2:
		return power / 5
	case v/power < 5:
		return power / 2
	}
	return power
}

// Number writes a figure with three digits at most that count.
func Number(v float64) string {
	if v == 0 {
		return "0"
	}
	digits := 2 - int(math.Floor(math.Log10(math.Abs(v))))
	if digits < 0 {
		digits = 0
	}
	text := strconv.FormatFloat(v, 'f', digits, 64)
	if digits > 0 {
		for text[len(text)-1] == '0' {
			text = text[:len(text)-1]
		}
		if text[len(text)-1] == '.' {
			text = text[:len(text)-1]
		}
	}
	return text
}

package report

import (
	"fmt"
	"image/color"
	"os"
	"path/filepath"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"

	"github.com/rediscache/rediscache/bench/client"
)

const (
	panelWidth = 12 * vg.Centimeter
	rowHeight  = 0.62 * vg.Centimeter
	panelFrame = 2.2 * vg.Centimeter // title and axis
	barWidth   = 0.4 * vg.Centimeter
	gap        = 0.3 * vg.Centimeter // around each panel
	textSize   = 9
)

var (
	ownColor  = color.RGBA{R: 0xc8, G: 0x3c, B: 0x2d, A: 0xff}
	peerColor = color.RGBA{R: 0x8c, G: 0x9b, B: 0xab, A: 0xff}
)

// The fonts are set once for the program: gonum/plot has no other place for all
// of a plot's text.
func init() {
	plot.DefaultFont.Variant = "Sans"
	plotter.DefaultFont.Variant = "Sans"
}

// Draw writes one SVG for each group of rows of the sections that are drawn beside the file of the report, and
// remembers them for it: a panel for each number of callers, a bar for each
// client, a whisker from the slowest round to the fastest. Each panel has its
// own scale: from 1 to 512 callers, one scale would leave the first a line.
func (r *Report) Draw(file string) error {
	base := strings.TrimSuffix(file, filepath.Ext(file))
	for _, s := range r.Sections {
		if !s.Plot {
			continue
		}
		for _, group := range s.groups() {
			name := base + "-" + slug(group[0].Group) + ".svg"
			if err := drawGroup(name, group); err != nil {
				return fmt.Errorf("bench: plot: %w", err)
			}
			r.Plots = append(r.Plots, Plot{Title: "Ops/s: " + group[0].Group, File: filepath.Base(name)})
		}
	}
	return nil
}

// slug makes a group's name fit for a file.
func slug(s string) string {
	return strings.NewReplacer("round trip ", "rtt", ", ", "-", " ", "", ":", "to").Replace(s)
}

func drawGroup(file string, rows []Row) error {
	columns := min(2, len(rows))
	lines := (len(rows) + columns - 1) / columns
	height := panelFrame + rowHeight*vg.Length(len(rows[0].Cells))
	img := vgsvg.New(panelWidth*vg.Length(columns), height*vg.Length(lines))
	tiles := draw.Tiles{
		Rows: lines, Cols: columns,
		PadX: gap, PadY: gap, PadTop: gap, PadRight: gap, PadLeft: gap, PadBottom: gap,
	}
	canvas := draw.New(img)
	for i, row := range rows {
		p, err := panel(row)
		if err != nil {
			return err
		}
		p.Draw(tiles.At(canvas, i%columns, i/columns))
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	if _, err := img.WriteTo(f); err != nil {
		_ = f.Close() // the write's error says more
		return err
	}
	return f.Close()
}

// panel draws one row: the first client on top.
func panel(row Row) (*plot.Plot, error) {
	p := plot.New()
	p.Title.Text = row.String()
	p.Title.TextStyle.Font.Size = textSize + 1
	p.Title.Padding = gap
	p.X.Label.Text = "ops/s"
	p.X.Min, p.X.Max = 0, 1 // a row of failures still has a scale
	p.X.Tick.Marker = rateTicks{}
	p.X.Tick.Label.Font.Size, p.Y.Tick.Label.Font.Size = textSize, textSize
	p.X.Label.TextStyle.Font.Size = textSize

	n := len(row.Cells)
	names := make([]string, n)
	for i, c := range row.Cells {
		at := n - 1 - i
		ops := PerSec.over(c.Samples)
		names[at] = c.Client
		if err := bar(p, float64(at), ops, c.Client == client.Own); err != nil {
			return nil, err
		}
		p.X.Max = max(p.X.Max, ops.Max*1.2) // room for the label
	}
	p.NominalY(names...)
	return p, nil
}

// bar adds the median as a bar and as text, and the spread as a whisker.
func bar(p *plot.Plot, at float64, ops Stat, own bool) error {
	b, err := plotter.NewBarChart(plotter.Values{ops.Median}, barWidth)
	if err != nil {
		return err
	}
	b.Horizontal, b.XMin = true, at
	b.Color, b.LineStyle.Width = peerColor, 0
	if own {
		b.Color = ownColor
	}
	whisker, err := plotter.NewXErrorBars(spreadAt{ops, at})
	if err != nil {
		return err
	}
	label, err := plotter.NewLabels(plotter.XYLabels{
		XYs: plotter.XYs{{X: ops.Max, Y: at}}, Labels: []string{rate(ops.Median)},
	})
	if err != nil {
		return err
	}
	label.TextStyle[0].Font.Size = textSize
	label.TextStyle[0].YAlign = draw.YCenter
	label.Offset = vg.Point{X: vg.Points(4)}
	p.Add(b, whisker, label)
	return nil
}

// spreadAt is one point with its error to the left and to the right.
type spreadAt struct {
	stat Stat
	at   float64
}

func (s spreadAt) Len() int              { return 1 }
func (s spreadAt) XY(int) (x, y float64) { return s.stat.Median, s.at }
func (s spreadAt) XError(int) (l, h float64) {
	return s.stat.Median - s.stat.Min, s.stat.Max - s.stat.Median
}

// rateTicks are the usual ticks, labelled as the tables write them.
type rateTicks struct{}

// Ticks returns the ticks between lowest and highest.
func (rateTicks) Ticks(lowest, highest float64) []plot.Tick {
	ticks := plot.DefaultTicks{}.Ticks(lowest, highest)
	for i, t := range ticks {
		switch {
		case t.Label == "": // a minor tick stays without
		case t.Value == 0:
			ticks[i].Label = "0"
		default:
			ticks[i].Label = strings.Replace(rate(t.Value), ".0 ", " ", 1)
		}
	}
	return ticks
}

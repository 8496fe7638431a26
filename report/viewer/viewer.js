// A viewer of meshes side by side that turn together. WebGL through three.js, or, where a browser
// has none, faces painted from far to near on a 2D canvas. Axes of files: x right, y up, z towards
// the viewer (docs/conventions.md).
"use strict";

const CLAY = [222, 194, 171];
const FIELD = 22; // vertical field of view, degrees
const NARROW = 520; // CSS pixels; below this width the meshes stand one above the other

/* faces: integers (3 F). Meshes: {verts: Float32Array (3 V), colors: Uint8Array (3 V) or null}. */
function createViewer(canvas, faces) {
  const view = {
    yaw: 0,
    pitch: 0,
    zoom: 1,
    colored: true,
    wide: 1,
    high: 1,
    slots: [],
  };
  let meshes = [];
  let pending = false;
  let spinning = false;
  const backend = hasWebGL() ? threeBackend(canvas, faces) : paintedBackend(canvas, faces);

  function draw() {
    pending = false;
    const { clientWidth: width, clientHeight: height } = canvas;
    if (!width || !meshes.length) return;
    const stacked = width < NARROW;
    canvas.toggleAttribute("data-stacked", stacked);
    view.slots = slots(meshes.length, width, height, stacked);
    backend.render(view, width, height, Math.min(window.devicePixelRatio || 1, 2));
    canvas.dataset.drawn = Number(canvas.dataset.drawn || 0) + 1;
    if (spinning) {
      view.yaw += 0.012;
      schedule();
    }
  }
  function schedule() {
    if (!pending) requestAnimationFrame(draw);
    pending = true;
  }
  function turn(yaw, pitch) {
    view.yaw += yaw;
    view.pitch = Math.max(-1.5, Math.min(1.5, view.pitch + pitch));
    schedule();
  }
  function zoom(factor) {
    view.zoom = Math.max(0.5, Math.min(6, view.zoom * factor));
    schedule();
  }

  const fingers = new Map(); // pointers that are down, by id
  canvas.addEventListener("pointerdown", (event) => {
    fingers.set(event.pointerId, event);
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    const last = fingers.get(event.pointerId);
    if (!last) return;
    const other = [...fingers.values()].find((finger) => finger !== last);
    fingers.set(event.pointerId, event);
    if (other) {
      const spread = (finger) =>
        Math.hypot(finger.clientX - other.clientX, finger.clientY - other.clientY);
      zoom(spread(event) / Math.max(1, spread(last)));
    } else {
      turn(-(event.clientX - last.clientX) * 0.01, (event.clientY - last.clientY) * 0.01);
    }
  });
  for (const name of ["pointerup", "pointercancel"])
    canvas.addEventListener(name, (event) => fingers.delete(event.pointerId));
  canvas.addEventListener(
    "wheel",
    (event) => {
      if (document.activeElement !== canvas) return; // the page scrolls until a click on the viewer
      event.preventDefault();
      zoom(Math.exp(-event.deltaY * 0.001));
    },
    { passive: false },
  );
  new ResizeObserver(schedule).observe(canvas);

  return {
    kind: backend.kind,
    turn,
    zoom,
    show(shown) {
      meshes = shown;
      frame(view, meshes);
      backend.load(meshes, view);
      schedule();
    },
    reset() {
      Object.assign(view, { yaw: 0, pitch: 0, zoom: 1 });
      schedule();
    },
    color(on) {
      view.colored = on;
      backend.load(meshes, view);
      schedule();
    },
    spin(on) {
      spinning = on;
      schedule();
    },
  };
}

function hasWebGL() {
  const probe = window.THREE && document.createElement("canvas").getContext("webgl2");
  probe?.getExtension("WEBGL_lose_context")?.loseContext();
  return Boolean(probe);
}

/* Rectangles [x, y, width, height] from the top left, one for each mesh. */
function slots(count, width, height, stacked) {
  return Array.from({ length: count }, (_, i) =>
    stacked
      ? [0, (i * height) / count, width, height / count]
      : [(i * width) / count, 0, width / count, height],
  );
}

/* Moves each mesh to its own middle, for they may stand at different depths, and measures how wide
   (however they turn) and high they are around it. */
function frame(view, meshes) {
  view.wide = view.high = 0;
  for (const { verts } of meshes) {
    const low = [Infinity, Infinity, Infinity];
    const high = [-Infinity, -Infinity, -Infinity];
    for (let i = 0; i < verts.length; i++) {
      low[i % 3] = Math.min(low[i % 3], verts[i]);
      high[i % 3] = Math.max(high[i % 3], verts[i]);
    }
    const middle = low.map((value, axis) => (value + high[axis]) / 2);
    for (let i = 0; i < verts.length; i++) verts[i] -= middle[i % 3];
    view.high = Math.max(view.high, (high[1] - low[1]) / 2);
    for (let i = 0; i < verts.length; i += 3)
      view.wide = Math.max(view.wide, Math.hypot(verts[i], verts[i + 2]));
  }
}

/* From how far away the meshes fill a slot. */
function distance(view, width, height) {
  const slope = Math.tan((FIELD / 2) * (Math.PI / 180));
  const reach = Math.max(view.wide / ((slope * width) / height), view.high / slope);
  return (reach * 1.06) / view.zoom + view.wide * 0.8;
}

const linear = Float32Array.from({ length: 256 }, (_, byte) => {
  const value = byte / 255; // sRGB to linear light
  return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
});

function threeBackend(canvas, faces) {
  const renderer = new THREE.WebGLRenderer({ canvas, antialias: true, alpha: true });
  renderer.setScissorTest(true);
  const scene = new THREE.Scene();
  const camera = new THREE.PerspectiveCamera(FIELD, 1, 0.1, 1000);
  const sky = new THREE.HemisphereLight(0xffffff, 0x9a8f86, 1.7);
  const lamp = new THREE.DirectionalLight(0xffffff, 2);
  camera.add(lamp); // the light stays over the viewer's left shoulder
  lamp.position.set(-0.8, 1, 0.9);
  scene.add(sky, camera);
  const material = new THREE.MeshStandardMaterial({
    vertexColors: true,
    roughness: 0.85,
    side: THREE.DoubleSide,
  });
  const index = new THREE.BufferAttribute(Uint32Array.from(faces), 1);
  let bodies = [];

  return {
    kind: "webgl",
    load(meshes, view) {
      for (const body of bodies) {
        body.geometry.dispose();
        scene.remove(body);
      }
      bodies = meshes.map(({ verts, colors }) => {
        const painted = view.colored && colors;
        const tint = Float32Array.from(verts, (_, i) => linear[painted ? colors[i] : CLAY[i % 3]]);
        const geometry = new THREE.BufferGeometry();
        geometry.setIndex(index);
        geometry.setAttribute("position", new THREE.BufferAttribute(verts, 3));
        geometry.setAttribute("color", new THREE.BufferAttribute(tint, 3));
        geometry.computeVertexNormals();
        return new THREE.Mesh(geometry, material);
      });
      scene.add(...bodies);
      // A photograph brings its own light and shadow: less of ours.
      sky.intensity = view.colored && meshes[0]?.colors ? 2.5 : 1.7;
      lamp.intensity = view.colored && meshes[0]?.colors ? 0.9 : 2;
    },
    render(view, width, height, ratio) {
      renderer.setPixelRatio(ratio);
      renderer.setSize(width, height, false);
      view.slots.forEach(([x, y, w, h], i) => {
        const far = distance(view, w, h);
        const [cos, sin] = [Math.cos(view.pitch), Math.sin(view.pitch)];
        camera.position.set(
          far * Math.sin(view.yaw) * cos,
          far * sin,
          far * Math.cos(view.yaw) * cos,
        );
        camera.lookAt(0, 0, 0);
        camera.aspect = w / h;
        camera.near = far / 100;
        camera.far = far * 10;
        camera.updateProjectionMatrix();
        bodies.forEach((body, j) => (body.visible = i === j));
        renderer.setViewport(x, height - y - h, w, h); // from the bottom left
        renderer.setScissor(x, height - y - h, w, h);
        renderer.render(scene, camera);
      });
    },
  };
}

function paintedBackend(canvas, faces) {
  const brush = canvas.getContext("2d");
  const count = faces.length / 3;
  let shown = [];
  return {
    kind: "painted",
    load(meshes) {
      shown = meshes;
    },
    render(view, width, height, ratio) {
      canvas.width = width * ratio; // also wipes it
      canvas.height = height * ratio;
      const turned = [
        Math.cos(view.yaw),
        Math.sin(view.yaw),
        Math.cos(view.pitch),
        Math.sin(view.pitch),
      ];
      view.slots.forEach((slot, i) => paint(shown[i], view, slot, turned, ratio));
    },
  };

  function paint(
    { verts, colors },
    view,
    [left, top, width, height],
    [cos, sin, cosUp, sinUp],
    ratio,
  ) {
    const far = distance(view, width, height);
    const focal = height / 2 / Math.tan((FIELD / 2) * (Math.PI / 180));
    const points = new Float32Array(verts.length); // column, row, depth
    const space = new Float32Array(verts.length); // camera space
    for (let i = 0; i < verts.length; i += 3) {
      const [x, y, z] = verts.subarray(i, i + 3);
      const ahead = x * sin + z * cos;
      space.set([x * cos - z * sin, y * cosUp - ahead * sinUp, y * sinUp + ahead * cosUp], i);
      const depth = far - space[i + 2];
      const [u, v] = [(space[i] / depth) * focal, (space[i + 1] / depth) * focal];
      points.set([ratio * (left + width / 2 + u), ratio * (top + height / 2 - v), depth], i);
    }
    const depths = new Float32Array(count);
    for (let f = 0; f < count; f++)
      for (let c = 0; c < 3; c++) depths[f] += points[3 * faces[3 * f + c] + 2];
    const order = Uint32Array.from(depths.keys()).sort((a, b) => depths[b] - depths[a]);
    for (const f of order) {
      const [a, b, c] = [3 * faces[3 * f], 3 * faces[3 * f + 1], 3 * faces[3 * f + 2]];
      const [ux, uy, uz] = [0, 1, 2].map((k) => space[b + k] - space[a + k]);
      const [vx, vy, vz] = [0, 1, 2].map((k) => space[c + k] - space[a + k]);
      const normal = [uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx];
      if (normal[2] <= 0) continue; // seen from behind
      const key = (-0.45 * normal[0] + 0.7 * normal[1] + 0.55 * normal[2]) / Math.hypot(...normal);
      const light = 0.55 + 0.5 * Math.max(0, key);
      const paint = view.colored && colors ? [0, 1, 2].map((k) => colors[a + k]) : CLAY;
      brush.fillStyle =
        brush.strokeStyle = `rgb(${paint.map((value) => Math.min(255, value * light))})`;
      brush.beginPath();
      for (const corner of [a, b, c]) brush.lineTo(points[corner], points[corner + 1]);
      brush.closePath();
      brush.fill();
      brush.stroke(); // closes the hairlines between faces
    }
  }
}

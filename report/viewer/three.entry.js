// The parts of three.js (MIT, three.LICENSE) that viewer.js uses. Rebuilt, in a folder with both npm packages installed, by
//   npx esbuild three.entry.js --bundle --minify --format=iife --global-name=THREE --outfile=three.min.js
export {
  BufferAttribute,
  BufferGeometry,
  Color,
  DirectionalLight,
  DoubleSide,
  HemisphereLight,
  Mesh,
  MeshStandardMaterial,
  PerspectiveCamera,
  Scene,
  WebGLRenderer,
} from "three";

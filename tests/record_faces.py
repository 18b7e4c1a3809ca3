"""What MediaPipe 0.10.21 itself sees; runs in an environment of its own (Python 3.9 to 3.12).

    python3.11 -m venv mp && mp/bin/pip install mediapipe==0.10.21
    echo '[{"picture": "a.png", "squares": [[[x, y], [x, y], [x, y]]]}]' | mp/bin/python tests/record_faces.py

A square is its top left corner and the vectors along its upper and its left side, in pixels. Prints a list
with, for each picture: `near` and `far`, what the two detectors see ([score, six key points]); `alone`, the
landmarks of every face as `FaceMesh(static_image_mode=True, refine_landmarks=True)` finds them in the whole
picture; `meshes`, the landmarks [x, y, z] in each square, by MediaPipe's graph FaceLandmarkCpu. All in pixels
of the picture. `bench_faces.py` calls it, and so does `test_faces.py` to record faces.json.
"""

import json
import sys
from pathlib import Path

import mediapipe
import numpy as np
from mediapipe.framework.formats import rect_pb2
from mediapipe.python._framework_bindings import resource_util
from mediapipe.python.solutions import face_detection, face_mesh
from PIL import Image

GRAPH = """
input_stream: "image"
input_stream: "square"
output_stream: "landmarks"
node {
  calculator: "ConstantSidePacketCalculator"
  output_side_packet: "PACKET:attention"
  options { [mediapipe.ConstantSidePacketCalculatorOptions.ext] { packet { bool_value: true } } }
}
node {
  calculator: "FaceLandmarkCpu"
  input_stream: "IMAGE:image"
  input_stream: "ROI:square"
  input_side_packet: "WITH_ATTENTION:attention"
  output_stream: "LANDMARKS:landmarks"
}
"""


def find_mesh(pixels, square):
    """Return the landmarks (478, 3) in a square, None where MediaPipe sees no face."""
    height, width = pixels.shape[:2]
    corner, right, down = np.asarray(square, float)
    middle, side = corner + (right + down) / 2, float(np.hypot(*right))
    rect = rect_pb2.NormalizedRect(
        x_center=middle[0] / width, y_center=middle[1] / height, width=side / width, height=side / height,
        rotation=float(np.arctan2(right[1], right[0])),
    )  # fmt: skip
    seen = []
    graph = mediapipe.CalculatorGraph(graph_config=GRAPH)
    graph.observe_output_stream("landmarks", lambda _, packet: seen.append(packet))
    graph.start_run()
    make = mediapipe.packet_creator
    frame = make.create_image_frame(image_format=mediapipe.ImageFormat.SRGB, data=pixels)
    graph.add_packet_to_input_stream("image", frame.at(1))
    graph.add_packet_to_input_stream("square", make.create_proto(rect).at(1))
    graph.close_all_packet_sources()
    graph.wait_until_done()
    if not seen:
        return None
    landmarks = mediapipe.packet_getter.get_proto(seen[0]).landmark
    return [[point.x * width, point.y * height, point.z * width] for point in landmarks]


def find_detections(pixels, model):
    """Return what a detector sees, 0 the near and 1 the far one: [score, six key points]."""
    height, width = pixels.shape[:2]
    with face_detection.FaceDetection(model_selection=model) as detector:
        seen = detector.process(pixels).detections or []
    return [
        [one.score[0], [[key.x * width, key.y * height] for key in one.location_data.relative_keypoints]]
        for one in seen
    ]


def find_alone(pixels):
    """Return the landmarks [x, y, z] of every face as MediaPipe finds them by itself."""
    height, width = pixels.shape[:2]
    with face_mesh.FaceMesh(static_image_mode=True, max_num_faces=8, refine_landmarks=True) as mesh:
        faces = mesh.process(pixels).multi_face_landmarks or []
    return [[[p.x * width, p.y * height, p.z * width] for p in face.landmark] for face in faces]


def main():
    """Read the pictures and squares from stdin, print what MediaPipe sees."""
    resource_util.set_resource_dir(str(Path(mediapipe.__file__).parents[1]))
    results = []
    for job in json.load(sys.stdin):
        with Image.open(job["picture"]) as picture:
            pixels = np.ascontiguousarray(picture.convert("RGB"))
        results.append({
            "near": find_detections(pixels, 0),
            "far": find_detections(pixels, 1),
            "alone": find_alone(pixels),
            "meshes": [find_mesh(pixels, square) for square in job["squares"]],
        })  # fmt: skip
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
